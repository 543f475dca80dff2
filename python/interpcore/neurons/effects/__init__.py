"""What a neuron does: interventions, deactivated heads, saved activations."""
