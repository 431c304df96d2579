"""What is predicted and what is written: records, images, labels, corruptions, boxes, predictions."""
