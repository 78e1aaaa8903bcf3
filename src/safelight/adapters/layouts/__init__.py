"""How tools name the layers that an adapter changes. Tables are made from our own names by a program."""
