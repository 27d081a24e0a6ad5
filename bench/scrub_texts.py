"""Texts with made-up personal data, marked: what `bench.scrub` scores the detector on, beside those held out.

The templates are of domains that the development data lacks: service chats, clinics, banks, travel, personnel, notes in
lower case. Names come from Faker's locales, and a share from lists written here, of names that are rare in its lists.
Needs ``faker``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from faker import Faker

LOCALES = (
    "en_US en_US en_US en_GB en_IN de_DE es_ES es_MX fr_FR sv_SE no_NO da_DK fi_FI it_IT nl_NL pl_PL pt_BR tr_TR"
).split()
# Romanised, which Faker has few of.
FIRST = (
    "Xiaoming Weiling Jianguo Meifang Zhiyuan Yifei Haoran Lihua Guowei Shufen Mohammed Abdulrahman Khaled Noura "
    "Yasmin Faisal Layla Hussein Rania Tariq Amal Bilal Sreelatha Venkatesh Ananya Rajeshwari Gurpreet Lakshmi Arjun "
    "Devansh Kavitha Sigurbjörg Þórunn Aino Väinö Oddvar Ragnhild Solveig Dieudonné Chukwuemeka Ngozi Thandiwe Kwabena "
    "Siobhán Caoimhe Nguyệt Thị Jun-ho Min-seo Hyun-woo Ayumi Kenji Svetlana Oleksandr Nadezhda Dmitri Bogdan Ilinca "
    "Zsófia"
).split()
LAST = (
    "Zhang Huang Ouyang Situ Zheng Al-Farsi Haddad Nasser Al-Rashid Khoury Mansour Subramaniam Chatterjee Iyer "
    "Gopalakrishnan Bhattacharya Deshpande Kaur Kristjánsdóttir Virtanen Mäkelä Haugen Øvergård Ngo Okonkwo Adeyemi "
    "Mbeki Dlamini Ó'Súilleabháin Kowalczyk Szymański Petrov Ivanova Shevchenko Popescu Nagy Tanaka Yamamoto Kim Park "
    "Choi Tran Pham"
).split()

TEMPLATES = """
Hi, this is {PERSON}. I can't log in to my account, my email is {EMAIL}. Can you help?
Thanks for waiting, {FIRST}. I have sent the reset link to {EMAIL}. Is there anything else?
My name is {PERSON} and I was charged twice on card {CARD}. Please refund me.
You can reach me on {PHONE} after 5 pm, or by mail at {EMAIL}.
Please ship the replacement to {ADDRESS}. The order number is 88412-3391.
i'm {PERSON}, order 4471-2231 never arrived, my number is {PHONE}
Agent: May I have your full name? Customer: {PERSON}. Agent: And your date of birth? Customer: {DOB}.
Agent: Thank you {FIRST}, could you confirm the postcode? Customer: The zip code is {ZIP}.
Ticket 55821: {PERSON} ({EMAIL}) reports that the app crashes on iOS 17.2.
Our delivery driver {FIRST} will call you at {PHONE} before arriving at {ADDRESS}.
Patient {PERSON}, born {DOB}, was admitted with chest pain. Next of kin: {PERSON}, tel. {PHONE}.
Dr. {LAST} prescribed 20 mg of atorvastatin to {PERSON} on Monday.
Please call {PERSON} at {PHONE} to reschedule the MRI of 14 March.
Appointment reminder: {PERSON} sees Dr. {PERSON} on 12/05 at 10:30. Questions? {PHONE}.
Nurse {FIRST} noted that the patient's SSN is {SSN} and her insurance id is ZX-44812.
DOB: {DOB}. Patient lives at {ADDRESS} with her daughter {FIRST}.
The lab results of {PERSON} were faxed to {PHONE} by mistake.
I saw Dr {LAST} last week; she referred me to {PERSON} at St. Mary's Hospital.
Please transfer 250 euros to {PERSON}, IBAN {IBAN}.
My new IBAN is {IBAN}; the old account at Deutsche Bank is closed.
The card {CARD} was used in Lisbon yesterday, it wasn't me. {PERSON}
Account holder: {PERSON}\\nSSN: {SSN}\\nPhone: {PHONE}\\nAddress: {ADDRESS}
Wire the deposit to {IBAN} and send the receipt to {EMAIL}, attention {PERSON}.
Visa ending soon? Mine is {CARD}, expires 09/27, name on card {PERSON}.
Hello, could you raise the limit of my credit card {CARD}? Regards, {PERSON}
A login from {IP} was blocked. If this was you, {FIRST}, ignore this mail.
Booking for {PERSON} and {PERSON}: two seats on flight LH 454, passport numbers to follow.
Dear {FIRST}, your room at the Grand Hotel is confirmed from 3 to 7 May. Contact: {EMAIL}.
We'd like a taxi from the airport to {ADDRESS} for {LAST}, party of four.
Passenger {LAST}/{FIRST} requests a vegetarian meal; mobile {PHONE}.
Lost luggage of {PERSON}: please deliver to {ADDRESS} or phone {PHONE}.
{PERSON} travels with an infant, {FIRST}, born on {DOB}.
Employee {PERSON} starts on 1 June; payroll needs her SSN {SSN} and IBAN {IBAN}.
I spoke with {FIRST} from HR about {PERSON}'s leave.
{PERSON} reports to {PERSON} and works from {CITY}.
Interview notes: {FIRST} was well prepared, {PERSON} less so. Call both back on Friday.
Emergency contact of {PERSON}: {PERSON} (mother), {PHONE}.
Resigned: {PERSON}, last day 30 September, forwarding address {ADDRESS}.
The candidates are {PERSON}, {PERSON} and {PERSON}.
Please add {EMAIL} and {EMAIL} to the mailing list of the Berlin office.
hey its {FIRST}, can u text me at {PHONE} thx
lol {FIRST} said the same thing yesterday
did {FIRST} and {FIRST} ever get back to you about the flat?
my mum {FIRST} lives at {ADDRESS}, can you deliver there
ask {FIRST}, she knows the wifi password
omg {FIRST} just got engaged to {FIRST}
pls send it to {EMAIL}, thx {FIRST}
{FIRST} is picking up the kids today, her cell is {PHONE}
can someone tell {PERSON} that the meeting moved to 3?
From: {PERSON} <{EMAIL}>\\nTo: {PERSON} <{EMAIL}>\\nSubject: Contract
Best regards,\\n{PERSON}\\n{ADDRESS}\\n{PHONE}
{{"name": "{PERSON}", "email": "{EMAIL}", "phone": "{PHONE}", "ip": "{IP}"}}
name,email,phone,ssn\\n{PERSON},{EMAIL},{PHONE},{SSN}\\n{PERSON},{EMAIL},{PHONE},{SSN}
2024-05-03 10:22:41 INFO login user={EMAIL} ip={IP} status=200
My portfolio is at {URL}, and my mail is {EMAIL}.
The form at {URL} asks for my social security number, which is {SSN}. Is that normal?
Could you summarise {URL} for me?
What's a polite way to tell my colleague {FIRST} that the report is late?
Write a birthday card for {PERSON}, who turns 40; born {DOB}.
Translate this letter: Sehr geehrte Frau {LAST}, wir haben Ihre Kündigung erhalten.
Draft an email to my landlord, Mr {LAST}, at {ADDRESS}, about the broken heating.
I, {PERSON}, residing at {ADDRESS}, hereby authorise {PERSON} to collect my parcel.
Tell me a story about a girl called {FIRST} and her dog.
Is {PHONE} a mobile or a landline?
Someone keeps calling from {PHONE}. Is it a scam?
{PERSON} v. {PERSON}: the hearing is adjourned to 9 October.
The tenant, {PERSON}, paid by card {CARD} on Tuesday.
Met {PERSON} at the conference; her card says {EMAIL} and {PHONE}.
We interviewed {PERSON}, a teacher from {CITY}, and her husband {FIRST}.
Thank you for your call, Mrs {LAST}. Your reference is 7781-22.
Signed by {PERSON} on behalf of the board.
Server 192 rebooted; {FIRST} please check {IP} and {IP6}.
Who is {PERSON}?
""".strip().split("\n")

# Nothing personal in these: every finding is a false alarm.
CLEAN = """
What time does the pharmacy close on Sundays?
The invoice 20240117-88 over 1,240.50 euros is due in 30 days.
Please restart the router and try again in 10 minutes.
Our Premium Plan includes Priority Support and 500 GB of storage.
The Eiffel Tower is 330 metres tall and was finished in 1889.
Flight LX 1612 from Zurich to Vienna is delayed by 45 minutes.
Take 2 tablets of ibuprofen 400 mg every 8 hours, not more than 1200 mg a day.
The error code is 0x8007232B and the build is 22631.3296.
In Python, use a list comprehension: [x * 2 for x in range(10)].
The Treaty of Versailles was signed in 1919.
My order 302-5567788-1122334 says delivered but nothing came.
Add 250 g of flour, 3 eggs, and a pinch of salt. Bake at 180 for 25 minutes.
Can you recommend a good book about the Roman Empire?
The Black Friday Sale starts on Thursday at Best Buy.
how do i get a refund for a subscription i cancelled last month
the new update broke dark mode on my phone, please fix
The Human Resources Department will publish the Annual Report in March.
Win 10,000 Points with every Gold Card purchase until 31 December.
The tracking number is 00340434161094042557.
Serial number SN-2231-8890-1123, firmware 4.2.1.
Our opening hours are Monday to Friday, 09:00-17:30.
Is the Blue Line running between Central Park and Union Square today?
The New England Journal of Medicine published the study in 2021.
Please quote reference 4489201 when you write to Customer Service.
Meet us in Hall 7, Booth 221, at the Hannover Messe.
Room 1204 has a view of Lake Geneva.
The patient has a blood pressure of 120/80 and a pulse of 72.
Dow Jones fell 1.2 percent while the Nasdaq rose.
The South African team beat New Zealand 32-31.
La Mer is a piece for orchestra; The Planets is another.
Use Visual Studio Code with the Azure Functions extension.
Total: 3 x 19.99 = 59.97, paid with Apple Pay.
we should rent a van and drive to the coast in june
will the store in paris be open on may 1
Version 2.14.0.1 fixes a bug in the Bluetooth stack.
She grew up in San Francisco and studied Computer Science at Stanford University.
""".strip().split("\n")


@dataclass
class Text:
    """A text, and where its personal data is."""

    text: str
    spans: list[tuple[int, int, str]] = field(default_factory=list)
    rare: bool = False


def texts(count: int, seed: int = 7, templates: Sequence[str] = TEMPLATES, clean: Sequence[str] = CLEAN) -> list[Text]:
    """Make *count* texts, one in six of them of *clean*; the same ones for the same seed."""
    source = random.Random(seed)
    fakers = {locale: Faker(locale) for locale in sorted(set(LOCALES))}
    for at, locale in enumerate(sorted(fakers)):
        fakers[locale].seed_instance(seed * 100 + at)
    made = []
    for number in range(count):
        if number % 6 == 5:
            made.append(Text(clean[number // 6 % len(clean)]))
        else:
            made.append(_fill(source.choice(templates), fakers, source))
    return made


def _fill(template: str, fakers: dict[str, Faker], source: random.Random) -> Text:
    rare = source.random() < 0.25
    faker = fakers[source.choice(LOCALES)]
    lower = template[0].islower() or source.random() < 0.08
    out, spans = "", []
    for part in re.split(r"(\{[A-Z0-9]+\})", template.replace("\\n", "\n").replace("{{", "\0").replace("}}", "\1")):
        if not part.startswith("{"):
            part = part.replace("\0", "{").replace("\1", "}")
            out += part.lower() if lower else part
            continue
        kind, value = _value(part[1:-1], faker, source, rare)
        if lower and kind in ("PERSON", "STREET_ADDRESS"):
            value = value.lower()
        if kind != "CITY":
            spans.append((len(out), len(out) + len(value), kind))
        out += value
    return Text(out, spans, rare)


def _value(kind: str, faker: Faker, source: random.Random, rare: bool) -> tuple[str, str]:
    if kind in ("FIRST", "LAST", "PERSON"):
        first = source.choice(FIRST) if rare else faker.first_name()
        last = source.choice(LAST) if rare else faker.last_name()
        return "PERSON", {"FIRST": first, "LAST": last, "PERSON": f"{first} {last}"}[kind]
    if kind == "EMAIL":
        return "EMAIL", source.choice((faker.email, faker.free_email, faker.company_email))()
    if kind == "PHONE":
        return "PHONE", _phone(faker, source)
    if kind == "CARD":
        number = faker.credit_card_number()
        if len(number) == 16 and source.random() < 0.6:
            number = source.choice(" -").join(number[at : at + 4] for at in (0, 4, 8, 12))
        return "CREDIT_CARD", number
    if kind == "SSN":
        number = f"{source.randint(1, 665):03}-{source.randint(1, 99):02}-{source.randint(1, 9999):04}"
        return "US_SSN", number if source.random() < 0.8 else number.replace("-", source.choice([" ", ""]))
    if kind == "IBAN":
        number = faker.iban()
        return "IBAN", " ".join(re.findall(".{1,4}", number)) if source.random() < 0.5 else number
    if kind == "ZIP":
        return "ZIP", f"{source.randint(501, 99950):05}"
    if kind == "IP":
        return "IP", faker.ipv4()
    if kind == "IP6":
        return "IP", faker.ipv6()
    if kind == "URL":
        return "URL", faker.url() + source.choice(["", "about", "index.html?page=2", "p/81123"])
    if kind == "DOB":
        day = faker.date_of_birth(minimum_age=18, maximum_age=90)
        return "DATE_OF_BIRTH", day.strftime(
            source.choice(["%Y-%m-%d", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d %B %Y", "%B %d, %Y", "%b %d, %Y"])
        )
    if kind == "ADDRESS":
        address = faker.address()
        return "STREET_ADDRESS", address if source.random() < 0.3 else address.replace("\n", ", ")
    return "CITY", faker.city()


def _phone(faker: Faker, source: random.Random) -> str:
    """Write a phone number as people do, rather than as Faker does."""
    shape = source.choice(
        (
            "({a}) {b}-{c}", "{a}-{b}-{c}", "{a}.{b}.{c}", "+1 {a} {b} {c}", "+1-{a}-{b}-{c}", "1-{a}-{b}-{c}",
            "+44 20 7{b} {c}", "020 7{b} {c}", "07{b} {c}{d}", "+49 30 {b}{c}", "030 {b}{c}", "+33 6 {d} {e} {d} {e}",
            "06 {d} {e} {d} {e}", "+91 98{b} {e}{b}", "+34 6{d} {b} {a}", "+46 70 {b} {d} {e}", "070-{b} {d} {e}",
            "+358 40 {b} {c}", "0{d}{d}/{b}{c}",
            "{a}{b}{c}",
        )
    )  # fmt: skip
    return shape.format(
        a=source.randint(201, 989),
        b=source.randint(200, 999),
        c=f"{source.randint(0, 9999):04}",
        d=source.randint(10, 99),
        e=f"{source.randint(0, 99):02}",
    )
