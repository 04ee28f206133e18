"""Hashed passwords as PostgreSQL stores them."""

import base64
import hashlib
import hmac
import os

from .wire import encoded


def md5_secret(user, password):
    return "md5" + hashlib.md5(encoded(password + user)).hexdigest()


def scram_secret(password, iterations=4096):
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", encoded(password), salt, iterations)
    client, server = (hmac.new(salted, word, hashlib.sha256).digest() for word in (b"Client Key", b"Server Key"))
    salt, stored, server = (base64.b64encode(x).decode() for x in (salt, hashlib.sha256(client).digest(), server))
    return f"SCRAM-SHA-256${iterations}:{salt}${stored}:{server}"
