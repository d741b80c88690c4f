"""From records on disk to batches of uint8 images; nothing here touches an accelerator."""
