"""What a backend imports: to publish jobs, and to receive what becomes of them.

Neither half needs torch, and each only what it uses: `publishing` pika and pydantic, `receiving`
pydantic.
"""
