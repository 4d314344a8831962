"""A customer-support chat with an agent: as it was first written, and with Commitcast."""
