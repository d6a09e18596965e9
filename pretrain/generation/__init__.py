"""Text from a model.

1. prompts become rows of ids, each begun as a document begins          prompts.py, text.py
2. all rows are read at once, then a token a step with the cache        loop.py
3. how a step's token is drawn                                          sampling.py, or beam.py
4. ids become text, in whole characters, up to a stop text              stream.py
5. the command, and the samples that a training shows                   cli.py, requests.py, samples.py
"""
