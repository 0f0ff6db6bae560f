"""The console: pages for a browser over the services of the API, served at `/console`."""
