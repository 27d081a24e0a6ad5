"""Templates that were written when the rules were done, and to which none was fitted since: what `bench.scrub` reports.

The values come from where those of `bench.scrub_texts` come from. Their domains are others: courts, landlords, schools,
clubs, insurance, dating, the post, the press, support of software; some are not English.
"""

from __future__ import annotations

TEMPLATES = """
The claimant, {PERSON}, states that on 4 June the defendant parked in front of {ADDRESS}.
Witness statement of {PERSON}, date of birth {DOB}, taken at the police station in {CITY}.
Counsel for {PERSON} may be reached by telephone at {PHONE} or by email ({EMAIL}).
Our tenant {PERSON} has not paid the rent for March; please remind her at {EMAIL}.
I'd like to rent the flat at {ADDRESS} from May onwards. {PERSON}, {PHONE}
The keys are with our neighbour {PERSON}, just ring twice.
Dear parents of {FIRST}, the trip to the zoo costs 12 euros per child.
Pupil: {PERSON}\\nBorn: {DOB}\\nGuardian: {PERSON}\\nIn an emergency call {PHONE}
{FIRST} won the 100 metres, {FIRST} came second and {PERSON} fell.
New member of the rowing club: {PERSON}, {ADDRESS}. Fees are taken from {IBAN}.
Please change the account for my premiums to {IBAN} as of next month. Policy 4471-AB.
On 2 May my car was hit by a lorry driven by {PERSON}, whose insurer does not answer.
{PERSON} writes: I was born on {DOB}, and I am looking for someone to hike with.
i met this guy {FIRST} on the app, he gave me his number {PHONE} but it doesnt work
so {FIRST} goes "no way" and {FIRST} just laughs lol
anyone got an email for {FIRST}? mine is {EMAIL}
The parcel for {PERSON}, {ADDRESS}, came back. Is the address right?
Forward everything that is addressed to {PERSON} to my new home: {ADDRESS}.
"We did not expect this," said {PERSON}, who has lived in {CITY} since 2009.
{PERSON}, the mayor, and {PERSON}, her deputy, opened the bridge on Sunday.
Photo: {PERSON}. Text: {PERSON}. Contact the newsroom at {EMAIL}.
Steps to reproduce: log in as {EMAIL}, open {URL}, click Save.
user {EMAIL} from {IP} failed 5 times; last try from {IP6}
{{"customer": {{"name": "{PERSON}", "birthDate": "{DOB}", "card": "{CARD}"}}}}
INSERT INTO people VALUES (17, '{PERSON}', '{EMAIL}', '{PHONE}');
Refund to the same card please, {CARD}, and not to the old one.
My card number {CARD} was declined twice at the pharmacy.
For the tax form they want my SSN, that's {SSN}, and my ZIP, {ZIP}.
Applicant {PERSON} (SSN {SSN}) receives benefits since January.
Hallo, ich heiße {PERSON} und wohne in der {ADDRESS}. Meine Nummer ist {PHONE}.
Bonjour, je m'appelle {PERSON} et mon adresse e-mail est {EMAIL}.
Hola, me llamo {PERSON}. Mi teléfono es {PHONE}.
Sehr geehrter Herr {LAST}, anbei die Rechnung. Mit freundlichen Grüßen, {PERSON}
Thanks {FIRST}! See you on Friday. -- {FIRST}
Hi {FIRST}, could you ask {PERSON} whether the slides are ready?
Minutes: {PERSON} (chair), {PERSON}, {PERSON}. Apologies: {PERSON}.
Is it true that {PERSON} worked at {URL} before?
Can you find out who owns the number {PHONE}?
Rewrite this politely: {FIRST}, stop sending me mails at {EMAIL}.
I'm writing a novel in which {FIRST} and {FIRST} rob a bank in Vienna.
Mrs. {LAST} will see you now; Mr. {LAST} is running late.
""".strip().split("\n")

CLEAN = """
The hearing is set for 10 October at 9:30 in courtroom 4.
How many calories are in 100 g of oats?
The rent goes up by 3.5 % from 1 January 2027.
Der Zug nach Hamburg fährt um 14:05 von Gleis 7.
Where in Lisbon can I see the sunset?
Set max_connections to 200 and shared_buffers to 4096.
Our Spring Collection is available at all Flagship Stores.
Chapter 3 explains the Pythagorean theorem with 12 examples.
can you write a function that reverses a linked list
The World Health Organization and the European Union signed it in Geneva.
Order 20-33117 contains 3 Garden Chairs and 1 Folding Table.
Le musée est ouvert du mardi au dimanche, de 10 h à 18 h.
The GDP grew by 2.1 percent in 2023 and 1.9 percent in 2024.
Traceback (most recent call last): File "app.py", line 42, in main
my laptop has 16 gb of ram and still freezes when i open chrome
The sample size was 1204, with p < 0.001.
""".strip().split("\n")
