"""Inputs and outputs of the vision pipeline: records, images, labels, corruptions, boxes, predictions."""
