"""Epilogues: what a kernel computes from a = x W and u = x V while they are still in registers.

Each takes the gate (an object with `value` and `slope`, as in `sqs_jax.gates`), then float32 arrays of one shape,
and returns a tuple of float32 arrays. Every backend runs them, at the end of the two matrix products and alone.
"""


def output(gate, a, u):
    """h = a ⊙ σ(u)."""
    return (a * gate.value(u),)


def output_and_branches(gate, a, u):
    """(h, a, u): what training keeps for the backward pass, from the pass that computes h."""
    return a * gate.value(u), a, u


def gradients(gate, a, u, g):
    """(∂a, ∂u) = (g ⊙ σ(u), g ⊙ a ⊙ σ'(u)), from the cotangent g of h."""
    return g * gate.value(u), g * a * gate.slope(u)


def activation(gate, x):
    """σ(x) alone."""
    return (gate.value(x),)


def activation_gradient(gate, x, g):
    """∂x = g ⊙ σ'(x), from the cotangent g of σ(x)."""
    return (g * gate.slope(x),)


OUTPUTS = {output: 1, output_and_branches: 3, gradients: 2, activation: 1, activation_gradient: 1}
