"""timm's state dicts as safetensors (github.com/huggingface/pytorch-image-models)."""
