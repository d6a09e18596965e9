"""Text generation with a KV cache.

1. prompts become ids, starting as a document does in the shards     prompts.py
2. prefill: one forward reads all prompts; then a token a step       decode_loop.py
3. the next token: greedy or sampled; or beam search                 sampling.py, beam.py
4. ids become text, in complete characters, up to a stop text        detokenize.py, completion.py
5. `pretrain generate`                                               options.py, session.py
"""
