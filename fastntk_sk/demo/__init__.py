"""An app in which a person learns pictures, picks some, and sees a model forget them."""
