"""The parts of `tools/device_check.py`: what is checked and measured on an accelerator."""
