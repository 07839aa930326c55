"""`python main.py advise`: how many engines, workers and which limits for a promise, by what has been seen.

`command` reads the arguments and the record, `sizing` finds the numbers with the simulator, `telling` says why.
"""
