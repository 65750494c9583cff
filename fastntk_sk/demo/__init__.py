"""An app to learn pictures, pick some of them, and see a model forget them."""
