"""The benchmark: `python -m bench`, run from the checkout.

cases.py says what is run, providers.py who runs it, measure.py how it is timed; suite.py checks and
times the cases, host.py what a call costs the host, held.py weighs what autograd keeps; report.py
shows and writes the results, run.py is a run from beginning to end.
digits.py trains a network with gpuact alone.
"""
