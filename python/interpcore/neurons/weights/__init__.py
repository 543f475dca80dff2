"""What a neuron reads and writes, from folded weights."""
