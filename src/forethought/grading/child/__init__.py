"""What runs on the other side: the files that a sandboxed process loads, and nothing else.

Standard library only, and no import from the rest of the package: inside a sandbox this folder is
all of Forethought that exists. `values` is also read by the parent.
"""
