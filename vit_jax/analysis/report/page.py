"""The page of an analysis: one HTML file with its pictures inside, which needs no other file and no network."""
import base64
from collections.abc import Sequence
import dataclasses
import html

# By this a page is recognized as written by the command, which may replace it.
GENERATOR = 'vit_jax.analyze'

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
figure { margin: 0; } figcaption { max-width: 46rem; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; }
td { overflow-wrap: anywhere; } .source, .missing { color: #595959; font-size: .9rem; }
"""


@dataclasses.dataclass(frozen=True)
class Section:
  """A figure on the page.

  Attributes:
    name: of the figure; its anchor.
    title: heading.
    text: what is seen.
    source: where it is from.
    png: the encoded picture; None if there is none.
    missing: lines that say which models are not in it, and why.
  """
  name: str
  title: str
  text: str
  source: str
  png: bytes | None
  missing: Sequence[str] = ()


def render(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
  """Return the page.

  Args:
    title: its heading.
    facts: (name, value) rows of the table at the top, such as the model and the date.
    sections: in order; those without a picture are only named at the end. All text is escaped.
  """
  escape = html.escape
  rows = '\n'.join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in facts)
  drawn = [section for section in sections if section.png is not None]
  links = ' · '.join(f'<a href="#{escape(section.name)}">{escape(section.title)}</a>' for section in drawn)
  bare = [f'<li>{escape(section.title)}: {escape("; ".join(section.missing))}</li>' for section in sections
          if section.png is None]
  rest = ['<h2>Not drawn</h2>', f'<ul>{"".join(bare)}</ul>'] if bare else []
  return '\n'.join([
      '<!DOCTYPE html>', '<html lang="en">', '<head>', '<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<meta name="generator" content="{GENERATOR}">', f'<title>{escape(title)}</title>',
      f'<style>{_STYLE}</style>', '</head>', '<body>', f'<h1>{escape(title)}</h1>', f'<table>\n{rows}\n</table>',
      f'<p>{links}</p>', *map(_render, drawn), *rest, '</body>', '</html>', ''])


def _render(section: Section) -> str:
  escape = html.escape
  assert section.png is not None
  data = base64.b64encode(section.png).decode('ascii')
  missing = ''.join(f'<p class="missing">Without {escape(line)}</p>' for line in section.missing)
  return (f'<h2 id="{escape(section.name)}">{escape(section.title)}</h2>\n<figure>\n'
          f'<img src="data:image/png;base64,{data}" alt="{escape(section.title)}">\n'
          f'<figcaption><p>{escape(section.text)}</p>\n<p class="source">{escape(section.source)}</p>{missing}'
          '</figcaption>\n</figure>')
