"""The networks of the family: plain `nn.Module`s, each with its frozen Config on top. They know torch alone."""
