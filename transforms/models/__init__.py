"""What users bring as models: checkpoints, their last dense layer, their loss."""
