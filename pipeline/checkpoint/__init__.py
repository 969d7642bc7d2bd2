"""What people hand us: folders in diffusers' layout and single files, read without torch (opened.py)."""
