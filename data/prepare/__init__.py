"""Public data sets in their own layouts to data set folders: `python -m data.prepare LAYOUT --help`.

    archives.py  members of untrusted archives, records of JSON lines files
    layouts.py   class-archive, caption-archive, clip-archive
    passages.py  plain text, cut into passages
    build.py     samples to a complete folder, with a report
    __main__.py  the command line

Nothing here is needed to train.
"""
