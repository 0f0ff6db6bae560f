"""HTTP below the routes: the protocol and its limits, request bodies, multipart forms, streamed
answers, and the middleware around every request.
"""
