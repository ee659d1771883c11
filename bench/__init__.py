"""The benchmark: `python -m bench`, run from the checkout.

What is measured: cases.py says what a case is and tables.py which are run, providers.py who runs
them, goals.py what is to be reached; suites.py puts these together.

How: measure.py times a call, suite.py checks and times a case; host.py and in_torch.py find what a
call costs the host, held.py what autograd keeps; digits.py trains a network with gpuact alone.
worker.py is the process that does all this, run.py a run from beginning to end.

claims/ measures what courses say of activations.

What came out: result.py is a run as it is kept; console.py, page.py, compare.py, ledger.py and
readme.py are the ways of looking at it.
"""
