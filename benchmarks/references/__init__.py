"""What users write or take instead, each in a process of its own: see `script.py` for what they
share.
"""
