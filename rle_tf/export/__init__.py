"""The regressor alone, in the formats that deployments load."""
