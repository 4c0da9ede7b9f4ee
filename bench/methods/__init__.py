"""`make bench OP=methods`: many recipes fine-tune one real model at one budget, in one table.

Every run is a row of a csv file, written when it is known; a command that was cut goes on where it
was. See bench/README.md.
"""
