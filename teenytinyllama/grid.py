"""Where the machine stands: its grid's carbon intensity, from codecarbon's own tables, and the building's share."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from .checks import ensure, near_name

# Whose regions codecarbon tells apart without a network. Source: codecarbon 3.3.2, core/emissions.py,
# `get_private_infra_emissions` and `_NORDIC_REGIONS_BY_COUNTRY` (the price zones of the Nordic power market).
_NORDIC_ZONES = {"SWE": "SE", "NOR": "NO", "FIN": "FI"}
REGION_COUNTRIES = ("CAN", "CHN", *sorted(_NORDIC_ZONES), "USA")


@dataclass(kw_only=True)
class GridSettings:
    """The keys of every stage whose energy is measured, mixed into its config."""

    country_iso_code: str = field(
        default="BRA", metadata={"help": "three-letter country of the machine, for the grid's carbon intensity"}
    )
    region: str | None = field(
        default=None,
        metadata={"help": f"its state, province or price zone, in {', '.join(REGION_COUNTRIES)}; null: the country's "
                          "mean"},
    )  # fmt: skip
    pue: float = field(
        default=1.0,
        metadata={"help": "what the building draws for each kWh of the machine; all energy is multiplied by it"},
    )


GRID_KEYS = frozenset(item.name for item in fields(GridSettings))


def grid_intensity(country_iso_code: str, region: str | None = None, key: str = "country_iso_code") -> float:
    """Return the intensity of a grid in g CO2e per kWh, from the tables inside codecarbon (no network).

    Args:
        country_iso_code: three capital letters (ISO 3166).
        region: a state, province or price zone that codecarbon knows; None for the country's mean.
        key: what the config calls the country.

    Raises:
        InputError: codecarbon knows no such country, or no such region of it.
    """
    from codecarbon.input import DataSource

    tables = DataSource()
    mix = tables.get_global_energy_mix_data()
    ensure(
        country_iso_code in mix,
        f"{key}={country_iso_code}: unknown country; three capital letters (ISO 3166) such as BRA or PRT."
        f"{near_name(country_iso_code, mix)}",
    )
    if region is None:
        return float(mix[country_iso_code]["carbon_intensity"])
    return _region_intensity(tables, country_iso_code, region, key)


def place(country_iso_code: str, region: str | None) -> str:
    """Return a country with its region, for readers: `USA (california)`."""
    return f"{country_iso_code} ({region})" if region else country_iso_code


def check_pue(pue: float) -> None:
    """Check a power usage effectiveness: energy of the building over energy of its machines.

    Raises:
        InputError: less than 1, or no number.
    """
    ensure(
        math.isfinite(pue) and pue >= 1,
        f"pue={pue}: a building draws at least what its machines do. Give 1 (the machine alone) or more, such as 1.2.",
    )


def known_regions(tables: Any, country_iso_code: str) -> list[str]:
    """Return the regions of a country that codecarbon has an intensity for, in small letters.

    Args:
        tables: codecarbon's `DataSource`.
        country_iso_code: three capital letters.
    """
    if country_iso_code == "USA":
        found = tables.get_country_emissions_data("usa")
        return sorted(name for name in found if not name.startswith("_") and name != "usa")
    if country_iso_code == "CAN":
        return sorted(tables.get_country_energy_mix_data("can"))
    if country_iso_code == "CHN":
        provinces = tables.get_china_provincial_emissions_data()["data"].values()
        return sorted(name for province in provinces for name in province["names"])
    if prefix := _NORDIC_ZONES.get(country_iso_code):
        return sorted(zone.lower() for zone in tables.get_nordic_country_energy_mix_data()["data"]
                      if zone.startswith(prefix))  # fmt: skip
    return []


def _region_intensity(tables: Any, country_iso_code: str, region: str, key: str) -> float:
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata

    known = known_regions(tables, country_iso_code)
    ensure(
        known,
        f"region={region}: {key}={country_iso_code} has one intensity only; regions are known of "
        f"{', '.join(REGION_COUNTRIES)}. Leave region out.",
    )
    ensure(
        region.lower() in known,
        f"region={region}: unknown region of {country_iso_code}; one of {', '.join(known)}."
        f"{near_name(region.lower(), known)}",
    )
    # codecarbon's own arithmetic, which the tracker uses too: some tables hold a mix of sources and no intensity.
    where = GeoMetadata(country_iso_code=country_iso_code, region=region)
    return 1000 * float(Emissions(tables).get_region_emissions(Energy.from_energy(kWh=1), where))
