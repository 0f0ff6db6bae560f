"""HTTP below the routes: the protocol with its bounds, bodies, forms, answers, and what surrounds
every request.
"""
