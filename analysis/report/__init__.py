"""The report of runs: one HTML file that needs nothing else (`python -m analysis.report --run R`).

    reading, metrics        the files of a run folder to plain data
    downsample              long curves to few numbers
    figures, specs          numbers to figures; how each kind of figure is drawn
    training, experts,
    interference            which figures there are
    tables, pictures        what is no figure
    page                    all of it to one file; page.html, style.css and the scripts are its parts

What stands in a run folder may come from others: every text is escaped, every number checked, and the page may load nothing.
"""
