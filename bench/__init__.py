"""The benchmark: `python -m bench`, run from the checkout.

cases.py says what is run, providers.py who runs it, measure.py how it is timed and suite.py in
which order; report.py shows the results. digits.py trains a network with gpuact alone.
"""
