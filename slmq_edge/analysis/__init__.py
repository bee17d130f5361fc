"""Sensitivity: which part of a model rounding hurts, by how much, and what its numbers look like.

damage       what it costs to round one part, where all else stays in float
parts        what of a quantized model can be rounded alone
outliers     how far the largest weights and activations stand out
sensitivity  all of these, of a model that a method has quantized
protecting   the linears that keep 8-bit weights

And distributions of weights and inputs, before and after a method has prepared a model:

distributions  what is known of them, and its file
spread         one tensor's, which comes in parts
observing      a model's
"""
