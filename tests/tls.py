"""A certificate of localhost and 127.0.0.1 with its key, and the authority that signed it.

They are public and valid for a century: for servers of tests alone.
"""

import ssl
from pathlib import Path

AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBiTCCAS+gAwIBAgIUVmG03JV0xS/4gh6oVM9hDz2KdDUwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTI5MTQwODQ1WhgPMjEy
NjExMDUxNDA4NDVaMBkxFzAVBgNVBAMMDnRlc3QgYXV0aG9yaXR5MFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEAh2qWZXQemaAfgxp3UVTUvjBKiOmOVVg6f8568HS
uhbIxjeLKGGnHbppWm6ornHxvygmvQTzQNJUv0kzlh5f9aNTMFEwHQYDVR0OBBYE
FBxneYqWsprnrAsGRUJeEZ1C+eWLMB8GA1UdIwQYMBaAFBxneYqWsprnrAsGRUJe
EZ1C+eWLMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgcgb1i5Pp
ccFCOe8voyYovcs493KCU3F+ak3AvrwruoUCIQC0vQ1acN7Do0xcTl/gmifRbSaf
cg6wKGQ8DYtZFTSutg==
-----END CERTIFICATE-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBmjCCAUCgAwIBAgIUTRXx3wf6hrB0ekw/uPNr4wNt2iswCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTI5MTQwODQ1WhgPMjEy
NjExMDUxNDA4NDVaMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDBZMBMGByqGSM49AgEG
CCqGSM49AwEHA0IABFoX5Z2Kgkg4Ga2dAR9W+sPBQbd1TamT4+1ydFLQh2dtaToX
J5tXG8rHFwezLSPcU+60PVeGUknBdtO6LeY67pSjaTBnMBoGA1UdEQQTMBGCCWxv
Y2FsaG9zdIcEfwAAATAJBgNVHRMEAjAAMB0GA1UdDgQWBBS1m/NYL9OJXqcW9aoT
tPQDfOvUMTAfBgNVHSMEGDAWgBQcZ3mKlrKa56wLBkVCXhGdQvnlizAKBggqhkjO
PQQDAgNIADBFAiALWnWkEPLCZvWvLVkZsLdt2GbFK/XXMku0Dke/ma61TAIhAMJP
LP2VWKDUNN2LkuIgYw9eNw6jB8SfJlneWj5oAV5E
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgRIgTLYv7c9LSVbpe
hGJz4dLUPxW0C8ZJgHt3hLDwab+hRANCAARaF+WdioJIOBmtnQEfVvrDwUG3dU2p
k+PtcnRS0IdnbWk6FyebVxvKxxcHsy0j3FPutD1XhlJJwXbTui3mOu6U
-----END PRIVATE KEY-----
"""


def server_context(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """The context of a server with this certificate, and the file of its authority."""
    authority, certificate, key = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.write_text(AUTHORITY)
    certificate.write_text(CERTIFICATE)
    key.write_text(KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, authority
