"""The sections of a configuration: frozen dataclasses that load neither torch nor Flower."""
