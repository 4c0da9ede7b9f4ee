"""Building the site: `python -m docs.make`, which `make docs` runs.

`pages` puts together what the site is made of, `tables` makes the parts that come from the
registry of recipes and from committed measurements, `links` looks whether every link leads
somewhere.
"""
