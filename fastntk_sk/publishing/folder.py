from ..store.persistence import *
