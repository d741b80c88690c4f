"""Weight formats, one file each: tables of names that both read and write."""
