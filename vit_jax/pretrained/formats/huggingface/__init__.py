"""Models of Hugging Face's transformers: model.safetensors, config.json, preprocessor_config.json."""
