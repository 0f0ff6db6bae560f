"""The console in a real Chromium: `make browser`. `make test` does not run these files.

`axe.min.js` is that file of the npm package `axe-core` 4.14.1, SHA-256
29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c, under the licence in
`axe.LICENSE`.
"""
