"""Rate limits: token buckets in Redis, of accounts at the API and of backends at the workers."""
