"""What courses say of activations, measured: `python -m bench claims`.

    table.py       a claim's findings: what was measured, against which limit, and the verdict
    networks.py    the data, the networks, and what is watched while they learn
    linear.py …    a module a claim: `measure` (the figures of one seed) and `judge` (the findings)
    course.py      the claims, in their order
    drawings.py    the pictures
    record.py      a run as it is kept: one JSON file
    run.py, page.py, readme.py   seen on the console, on a page, in README.md

A verdict is never written down: it follows from figures and limits (table.Finding.verdict).
"""
