"""What a model will take of a GPU before it ever ran, from its config.json, its headers and its flags. Pure.

architecture.py   config.json as a shape; fields.py reads it tolerantly, layers.py tells what each layer keeps
weights.py        from tensors to bytes as loaded; parameters.py counts them where there are no headers
serving.py        vLLM's flags as far as they shape memory
kv_cache.py       from shape and flags to bytes of a token, a sequence, a block
lora.py           what adapters add
estimating.py     all of it together, with what CUDA, graphs and activations add
"""
