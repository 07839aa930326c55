"""`python main.py simulate`: what a fleet would do, seen through the gateway's own classes under a virtual clock.

`command` reads the arguments (`options`) into a `scenario`; `simulator` runs it once for each strategy, over `events`;
`virtual` is a gateway there (router, tries, limits, workers are the shipped ones), `machines` are its engines, `faults`
what befalls them, `probing` its health checks; `draws`, `arrivals` and `distributions` say what chance brings, the same
for every strategy; `measures` counts, `result`, `table` and `page` tell.
"""
