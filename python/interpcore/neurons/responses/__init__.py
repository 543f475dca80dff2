"""What a neuron responds to: features, labels and positions that explain it."""
