"""Fields that are the same in every simulated answer."""

FINGERPRINT = "simulated"
CREATED = 1_742_169_600  # 2025-03-17
