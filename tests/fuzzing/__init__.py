"""Damaged and hostile input in large numbers, through the real readers of the package.

`scripts/fuzz.py` is the command. A case is a number: family, seed and number give the same input
again. Everything that can end a process runs in a child process (`worker.py`), which the parent
(`supervisor.py`) watches for crashes, hangs, growing memory and open files.

    mutations.py   bytes and JSON values in, damaged ones out
    repairs.py     checksums put right again, so that the damage reaches the decoders
    samples.py     small valid files of every format
    families.py    the families by name; what a case, a reader and a verdict are
    media.py       images, videos, masks
    archives.py    tar and zip shards with their JSON
    documents.py   configurations and checkpoints
    commands.py    the words of the command lines
    selftest.py    readers that fail in every way, to test the fuzzer
"""
