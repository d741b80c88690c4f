"""Costs of compiled programs: small ones written by hand, with sums done by hand."""
import pathlib

import pytest

import vit_jax
from vit_jax.planning import cost as cost_lib
from vit_jax.planning import hlo

PACKAGE = pathlib.Path(vit_jax.__file__).parent

# A step with 2 × 3 iterations of an inner loop, a conditional, collectives in plain, asynchronous and fused form, and a
# hand-written kernel. Estimates are where the TPU compiler writes them.
PROGRAM = f'''HloModule jit_step, is_scheduled=true, entry_computation_layout={{(f32[8,128]{{1,0:T(8,128)}})->f32[8,128]{{1,0:T(8,128)}}}}

FileNames
1 "{PACKAGE}/models/attention.py"
2 "/usr/lib/somewhere/linear.py"
3 "/home/somebody/recipe.py"

FunctionNames
1 "Attention.__call__"
2 "Linear.__call__"
3 "main"

FileLocations
1 {{file_name_id=3 function_name_id=3 line=7 end_line=7 column=1 end_column=2}}
2 {{file_name_id=1 function_name_id=1 line=43 end_line=43 column=1 end_column=2}}
3 {{file_name_id=2 function_name_id=2 line=9 end_line=9 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=2}}
3 {{file_location_id=3 parent_frame_id=3}}

%sum (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.0 = f32[] add(%a, %b)
}}

%fused_product (p0: bf16[8,128], p1: bf16[128,128]) -> bf16[8,128] {{
  %p0 = bf16[8,128]{{1,0:T(8,128)(2,1)}} parameter(0)
  %p1 = bf16[128,128]{{1,0:T(8,128)(2,1)}} parameter(1)
  ROOT %convolution.1 = bf16[8,128]{{1,0:T(8,128)(2,1)}} convolution(%p0, %p1), dim_labels=bf_io->bf
}}

%fused_move (p2: f32[8,128]) -> bf16[128,8] {{
  %p2 = f32[8,128]{{1,0}} parameter(0)
  %convert.9 = bf16[8,128]{{1,0}} convert(%p2)
  ROOT %transpose.9 = bf16[128,8]{{1,0}} transpose(%convert.9), dimensions={{1,0}}
}}

%all-reduce-scatter.2 (p3: f32[64,128]) -> f32[8,128] {{
  %p3 = f32[64,128]{{1,0}} parameter(0)
  %all-reduce.7 = f32[64,128]{{1,0}} all-reduce(%p3), channel_id=4, replica_groups={{{{0,1,2,3,4,5,6,7}}}}, to_apply=%sum
  ROOT %dynamic-slice.3 = f32[8,128]{{1,0}} dynamic-slice(%all-reduce.7), dynamic_slice_sizes={{8,128}}
}}

%fused_gather (p4: f32[2,128]) -> f32[16,128] {{
  %p4 = f32[2,128]{{1,0}} parameter(0)
  ROOT %all-gather.5 = f32[16,128]{{1,0}} all-gather(%p4), channel_id=5, dimensions={{0}}
}}

%async_collective_fusion.3 (p5: f32[2,128]) -> f32[16,128] {{
  %p5 = f32[2,128]{{1,0}} parameter(0)
  ROOT %all-gather.6 = f32[16,128]{{1,0}} all-gather(%p5), channel_id=5, dimensions={{0}}
}}

%inner_condition (arg.1: (s32[], f32[8,128])) -> pred[] {{
  %arg.1 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) parameter(0)
  %constant.3 = s32[]{{:T(128)}} constant(3)
  %get-tuple-element.1 = s32[]{{:T(128)}} get-tuple-element(%arg.1), index=0
  ROOT %lt.1 = pred[]{{:T(512)}} compare(%get-tuple-element.1, %constant.3), direction=LT
}}

%inner_body (arg.2: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %arg.2 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) parameter(0)
  %product = bf16[8,128]{{1,0:T(8,128)(2,1)S(1)}} fusion(%arg.2, /*index=1*/%arg.2), kind=kOutput, calls=%fused_product, metadata={{op_name="a/dot_general" stack_frame_id=3}}, backend_config={{"window_config":{{"estimated_cycles":"100"}}}}
  %slice.1 = f32[1,128]{{1,0}} slice(%product), slice={{[0:1], [0:128]}}
  %all-gather-start.1 = (f32[1,128]{{1,0}}, f32[8,128]{{1,0}}) all-gather-start(%slice.1), channel_id=2, dimensions={{0}}
  %all-gather-done.1 = f32[8,128]{{1,0}} all-gather-done(%all-gather-start.1)
  ROOT %tuple.2 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) tuple(%arg.2, %all-gather-done.1)
}}

%outer_condition (arg.3: (s32[], f32[8,128])) -> pred[] {{
  %arg.3 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) parameter(0)
  ROOT %lt.2 = pred[]{{:T(512)}} custom-call(%arg.3), custom_call_target="Opaque"
}}

%outer_body (arg.4: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %arg.4 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) parameter(0)
  %move = bf16[128,8]{{1,0}} fusion(%arg.4), kind=kLoop, calls=%fused_move, metadata={{op_name="b" stack_frame_id=1}}, backend_config={{"window_config":{{"estimated_cycles":"20"}}}}
  ROOT %while.1 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) while(%arg.4), condition=%inner_condition, body=%inner_body
}}

%dear (arg.5: f32[8,128]) -> f32[8,128] {{
  %arg.5 = f32[8,128]{{1,0}} parameter(0)
  ROOT %exp.1 = f32[8,128]{{1,0}} exponential(%arg.5), backend_config={{"window_config":{{"estimated_cycles":"5000"}}}}
}}

%cheap (arg.6: f32[8,128]) -> f32[8,128] {{
  ROOT %arg.6 = f32[8,128]{{1,0}} parameter(0), backend_config={{"window_config":{{"estimated_cycles":"1"}}}}
}}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {{
  %x = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  %copy.1 = f32[8,128]{{0,1:T(8,128)}} copy(%x), backend_config={{"window_config":{{"estimated_cycles":"7"}}}}
  %while.2 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) while(%copy.1), condition=%outer_condition, body=%outer_body, backend_config={{"known_trip_count":{{"n":"2"}}}}
  %pick = f32[8,128]{{1,0}} conditional(%x, %x, %x), branch_computations={{%cheap, %dear}}
  %either = f32[8,128]{{1,0}} conditional(%x, %x, %x), true_computation=%cheap, false_computation=%cheap
  %kernel = f32[8,128]{{1,0}} custom-call(%pick), custom_call_target="tpu_custom_call"
  %allocation = f32[8,128]{{1,0}} custom-call(), custom_call_target="AllocateBuffer"
  %big = f32[64,128]{{1,0}} broadcast(%kernel)
  %part = f32[2,128]{{1,0}} slice(%x), slice={{[0:2], [0:128]}}
  %async-collective-start = f32[16,128]{{1,0}} fusion(%part), kind=kCustom, calls=%fused_gather
  %fusion.3 = f32[16,128]{{1,0}} fusion(%part), kind=kCustom, calls=%async_collective_fusion.3
  %async-collective-done = f32[16,128]{{1,0}} fusion(%part), kind=kCustom, calls=%fused_gather
  %scatter = f32[8,128]{{1,0}} fusion(%big), kind=kCustom, calls=%all-reduce-scatter.2
  %small = bf16[100]{{0:T(256)}} constant({{...}})
  %permute = (f32[8,128]{{1,0}}, f32[8,128]{{1,0}}, u32[]{{:S(2)}}, u32[]{{:S(2)}}) collective-permute-start(%x), source_target_pairs={{{{0,1}}}}
  %psum = (f32[8,128]{{1,0}}, /*index=1*/bf16[100]{{0:T(256)}}) all-reduce(%scatter, %small), channel_id=1, to_apply=%sum
  ROOT %out = f32[8,128]{{1,0:T(8,128)}} add(%scatter, %x), metadata={{op_name="c"}}, backend_config={{"window_config":{{"estimated_cycles":"11"}}}}
}}
'''


@pytest.fixture(scope='module')
def program():
  return hlo.parse(PROGRAM)


def test_cycles_count_loop_iterations_and_the_most_expensive_branch(program):
  # copy 7, 2 × (move 20 + 3 × product 100), branches 5000 and 1, add 11
  assert cost_lib.cost(program).cycles == 7 + 2 * (20 + 3 * 100) + 5000 + 1 + 11


def test_cycles_by_line_and_kind(program):
  operations = cost_lib.cost(program).operations
  assert operations['models/attention.py:43 Attention.__call__', 'matmul'] == 600  # not the library's line inside it
  assert operations['/home/somebody/recipe.py:7 main', 'movement'] == 40
  assert operations['added by the compiler: copy', 'movement'] == 7
  assert operations['added by the compiler: exponential', 'vector'] == 5000


def test_collectives_and_their_bytes(program):
  cost = cost_lib.cost(program)
  assert cost.collectives == {'all-gather': 6 + 1, 'reduce-scatter': 1, 'collective-permute': 1, 'all-reduce': 1}
  # Per device: what is gathered, once if in three fusions; the input of the scatter; what is permuted and a pair of
  # u32; float32 and bfloat16.
  array = 4 * 8 * 128
  assert cost.collective_bytes == {'all-gather': 6 * array + 2 * array, 'reduce-scatter': 8 * array, 'collective-permute': array + 8,
                                   'all-reduce': array + 200}


def test_kernels_are_counted_not_estimated(program):
  assert cost_lib.cost(program).kernels == 1


def test_a_loop_of_unknown_length_is_counted_once_and_reported(program):
  unknown = hlo.parse(PROGRAM.replace(', backend_config={"known_trip_count":{"n":"2"}}', ''))
  cost = cost_lib.cost(unknown)
  assert cost_lib.cost(program).unread == 0 and cost.unread == 1
  assert cost_lib.cost(program).cycles - cost.cycles == 20 + 3 * 100


def test_callers_counted_from_zero_or_one_give_the_same_frames(program):
  text = PROGRAM
  for number in (1, 2, 3):
    text = text.replace(f'parent_frame_id={number}}}', f'parent_frame_id={number - 1}}}')
  assert hlo.parse(text).frames == program.frames
  assert [line for _, line, _ in program.trace(3)] == [9, 43, 7]


@pytest.mark.parametrize('shape, size', [
    ('f32[8,128]{1,0:T(8,128)}', 4096), ('pred[]', 1), ('(bf16[3]{0}, /*index=1*/u8[2,2]{1,0})', 10), ('s4[5]', 3),
    ('token[]', 0), ('f32[0,4]', 0)])
def test_sizes_of_shapes(shape, size):
  assert hlo.size(shape) == size


def test_text_without_a_program_is_an_error():
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.parse('module @jit_step {')
