"""Hostile tenants and hostile engines at real programs, beside a tenant whose requests must go on."""
