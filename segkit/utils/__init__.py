"""Small helpers that know nothing about segmentation: distributed training, seeding, files, errors and padding."""
