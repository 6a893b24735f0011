"""Public data sets in their own layouts to data set folders: `python -m data.prepare LAYOUT --help`.

    containers.py     folders, tars, zips: lists of files to be read one by one, refused where they are not to be trusted
    annotations.py    JSON, JSON lines, lists of names; tables.py    tables with names of columns, parquet
    source.py         samples to be, divided into shards; val; mixed order
    media.py          images and clips: checked, reduced (reencode.py)
    build.py          shards by worker processes (pool.py), going on after a kill (progress.py), summary.json
    layout.py         a command and the arguments that several share
    images.py captions.py web.py clips.py clip_captions.py text.py (passages.py) glue.py vqa.py table.py    the layouts
    __main__.py       the command line

Nothing here is needed to train.
"""
