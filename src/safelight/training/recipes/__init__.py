"""What can be trained. A recipe says which networks, on what batches, by which loss; the loop does the rest."""
